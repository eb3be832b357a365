"use strict";

const element = (id) => document.getElementById(id);

/** The network, its description, and the runtime, once they are loaded. */
let session, model, ort;
/** The backend that computes. */
let backend = "WebAssembly";
let label = 0;

/**
 * Uniform random numbers in [0, 1) from a 32-bit seed: the generator mulberry32, which adds a constant to a counter and
 * mixes its bits.
 */
function uniform(seed) {
  let counter = seed >>> 0;
  return () => {
    counter = (counter + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(counter ^ (counter >>> 15), counter | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 4294967296;
  };
}

/** n values of unit noise for a whole seed: the Box-Muller transform of pairs of uniform random numbers. */
function noiseOf(seed, n) {
  const next = uniform(seed);
  const noise = new Float64Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - next())), angle = 2 * Math.PI * next();
    noise[i] = radius * Math.cos(angle);
    if (i + 1 < n) noise[i + 1] = radius * Math.sin(angle);
  }
  return noise;
}

/** Noise for any seed; between two whole seeds it lies on the arc between their noise. */
function noiseAt(seed, n) {
  const low = Math.floor(seed), share = seed - low;
  const a = noiseOf(low, n), b = noiseOf(low + 1, n);
  const product = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const cosine = product(a, b) / Math.sqrt(product(a, a) * product(b, b));
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
  const [toA, toB] = [(1 - share) * angle, share * angle].map((part) => Math.sin(part) / Math.sin(angle));
  return Float32Array.from(a, (value, i) => toA * value + toB * b[i]);
}

/** The image for unit noise, C x H x W values in [-1, 1], in one evaluation. */
async function draw(noise, label) {
  const inputs = { noise: new ort.Tensor("float32", noise, [1, ...model.shape]) };
  if (model.classes) inputs.class_label = new ort.Tensor("int64", BigInt64Array.of(BigInt(label)), [1]);
  const { image } = await session.run(inputs);
  return image.getData();
}

function show(values) {
  const [channels, height, width] = model.shape;
  const pixels = new ImageData(width, height);
  for (let i = 0; i < height * width; i += 1) {
    for (let c = 0; c < 3; c += 1) {
      pixels.data[4 * i + c] = Math.round(127.5 * values[(channels === 1 ? 0 : c) * height * width + i] + 127.5);
    }
    pixels.data[4 * i + 3] = 255;
  }
  element("picture").getContext("2d").putImageData(pixels, 0, 0);
}

let busy = false, waiting = false;

/** Draw for the current controls. While an image is drawn, only the latest further move is remembered. */
async function update() {
  waiting = true;
  if (busy) return;
  busy = true;
  while (waiting) {
    waiting = false;
    const start = performance.now();
    const seed = Number(element("seed").value);
    element("seed-value").textContent = seed.toFixed(2);
    show(await draw(noiseAt(seed, model.shape.reduce((a, b) => a * b)), label));
    const time = performance.now() - start;
    element("cost").textContent = `1 evaluation, ${time.toFixed(time < 10 ? 1 : 0)} ms by ${backend}`;
    await new Promise(requestAnimationFrame);
  }
  busy = false;
}

/** Buttons for the classes, or a number field if there are too many. */
function classes() {
  const parent = element("classes");
  if (model.classes > 20) {
    const input = Object.assign(document.createElement("input"), {
      type: "number", min: 0, max: model.classes - 1, value: 0,
    });
    input.setAttribute("aria-label", "Class");
    input.addEventListener("input", () => {
      if (input.value === "" || !input.checkValidity()) return;
      label = Number(input.value);
      update();
    });
    parent.append(input);
    return;
  }
  const values = [...Array(model.classes).keys(), ...(model.any ? [model.classes] : [])];
  for (const value of model.classes ? values : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = value === model.classes ? "any" : value;
    button.setAttribute("aria-pressed", value === 0);
    button.addEventListener("click", () => {
      for (const other of parent.children) other.setAttribute("aria-pressed", other === button);
      label = value;
      update();
    });
    parent.append(button);
  }
}

/** Whether WebGPU uses a graphics card; its emulation on the processor is slower than WebAssembly. */
async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter();
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

/** Load the runtime and the network, with WebGPU if the browser has it, else with WebAssembly. */
async function load() {
  const wanted = new URLSearchParams(location.search).get("backend");
  if (model.webgpu && wanted !== "wasm" && await hasGpu()) {
    try {
      ort = await import("./runtime/ort.webgpu.min.mjs");
      session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["webgpu"] });
      backend = "WebGPU";
      return;
    } catch (error) {
      console.warn("WebGPU cannot run this network, so WebAssembly is used:", error);
    }
  }
  ort = await import("./runtime/ort.wasm.min.mjs");
  session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
}

async function start() {
  model = await (await fetch("model.json")).json();
  await load();
  const [, height, width] = model.shape;
  Object.assign(element("picture"), { height, width });
  classes();
  element("seed").addEventListener("input", update);
  element("model").textContent = `Each image is one evaluation of a network of ${model.parameters.toLocaleString("en")} `
    + "parameters, which runs on this device.";
  await update();
  element("controls").hidden = element("picture").hidden = false;
}

function fail(error) {
  element("problem").textContent = location.protocol === "file:"
    ? "A browser does not load a network from a file. In this folder run: python -m http.server, and open localhost:8000"
    : `The network or its runtime could not be loaded: ${error.message}`;
  element("problem").hidden = false;
  element("model").hidden = true;
}

start().catch(fail);
