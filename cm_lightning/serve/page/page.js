"use strict";

const element = (id) => document.getElementById(id);

/** What the server draws: the names are those of POST /draw. */
const wish = { seed: 0 };
/** Milliseconds from a move to the picture on the screen, the latest last; measurements read them. */
window.delays = [];

/** Asks for the pictures of one model. One request is under way, and what is sent next is the latest wish alone. */
class Channel {
  constructor(figure, teacher) {
    Object.assign(this, { figure, teacher, busy: false, moved: null });
  }

  /** Ask for what the controls say now; moved is the time of the move. */
  async ask(moved) {
    this.moved = moved;
    if (this.busy) return;
    this.busy = true;
    while (this.moved !== null) await this.turn();
    this.busy = false;
  }

  async turn() {
    const { moved } = this, asked = version;
    this.moved = null;
    const picture = await draw({ ...values(), teacher: this.teacher });
    const stale = this.teacher && asked !== version;
    if (picture && !stale) await this.show(picture, moved);
    if (!this.teacher && teacher && this.moved === null) teacher.ask(moved); // which takes longer, and waits for rest
  }

  async show(picture, moved) {
    const image = this.figure.querySelector("img");
    image.src = `data:image/png;base64,${picture.image}`;
    await image.decode();
    const evaluations = `${picture.evaluations} evaluation${picture.evaluations === 1 ? "" : "s"}`;
    this.figure.querySelector(".cost").textContent = `${evaluations}, ${shown(picture.milliseconds)} ms`;
    const delay = await painted() - moved;
    this.figure.querySelector(".delay").textContent = `on the screen ${shown(delay)} ms after your move`;
    if (!this.teacher) window.delays.push(delay);
  }
}

const shown = (milliseconds) => milliseconds < 10 ? milliseconds.toFixed(1) : milliseconds.toFixed(0);
const painted = () => new Promise((resolve) => requestAnimationFrame(() => resolve(performance.now())));

/** The server's picture, or null if it refuses or is gone. */
async function draw(values) {
  const post = () => fetch("draw", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
  });
  try {
    const answer = await post().catch(post); // a connection that was idle for long may be closed by now
    const content = await answer.json();
    tell(content.error);
    return answer.ok ? content : null;
  } catch {
    tell("The server does not answer. Does cm-lightning serve still run?");
    return null;
  }
}

function tell(problem) {
  element("problem").hidden = !problem;
  element("problem").textContent = problem || "";
}

let student = null, teacher = null;
/** The number of moves so far: a teacher's picture of an earlier one is dropped. */
let version = 0;

function values() {
  if (!painting.used) return wish;
  const { canvas } = painting;
  const kind = canvas.width * canvas.height > 320 ** 2 ? "image/jpeg" : "image/png"; // a large PNG of a photo is long
  return { ...wish, image: canvas.toDataURL(kind, 0.95) };
}

function update() {
  version += 1;
  if (student) student.ask(performance.now());
}

/** Buttons of which one is pressed. */
function choice(parent, values, pressed, text, choose) {
  const buttons = values.map((value) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text(value);
    button.addEventListener("click", () => press(value));
    parent.append(button);
    return button;
  });
  function press(value) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", values[i] === value));
    choose(value);
  }
  press(pressed);
  return buttons;
}

/** A slider whose value is shown beside it. */
function slider(id, text, set) {
  const input = element(id);
  const read = () => {
    set(Number(input.value));
    element(`${id}-value`).textContent = text();
  };
  input.addEventListener("input", () => { read(); update(); });
  read();
}

/** The canvas: strokes and images on a plain ground. */
const painting = {
  canvas: element("canvas"), used: false, colour: "#ffffff", ground: "#000000", scale: 1, camera: null,

  begin(shape) {
    const [channels, height, width] = shape;
    this.scale = Math.max(1, Math.round(280 / Math.max(height, width)));
    this.canvas.width = width * this.scale;
    this.canvas.height = height * this.scale;
    element("student").querySelector("img").style.aspectRatio = `${width} / ${height}`;
    element("teacher").querySelector("img").style.aspectRatio = `${width} / ${height}`;
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    if (channels === 3) [this.colour, this.ground] = ["#222222", "#ffffff"];
    this.colours(channels === 1 ? ["#ffffff", "#000000"]
      : ["#222222", "#ffffff", "#d33c32", "#e9b22f", "#3f9b48", "#3677d1"]);
    this.clear();
  },

  colours(values) {
    const buttons = choice(element("colours"), values, this.colour, () => "", (value) => { this.colour = value; });
    buttons.forEach((button, i) => {
      button.style.background = values[i];
      button.setAttribute("aria-label", `Pen of colour ${values[i]}`);
    });
  },

  clear() {
    this.pen.fillStyle = this.ground;
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.use(false);
  },

  use(used) {
    this.used = used;
    element("clear").disabled = element("noise").disabled = !used;
  },

  /** Where an event of the pointer is, in pixels of the canvas. */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    return [x * this.canvas.width, y * this.canvas.height];
  },

  stroke(from, to) {
    this.pen.strokeStyle = this.colour;
    this.pen.lineWidth = Number(element("pen").value) * this.canvas.width / 50;
    this.pen.lineCap = "round";
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(...to);
    this.pen.stroke();
    this.use(true);
    update();
  },

  /** Fill the canvas with an image or a frame of the given size, cut to its shape. */
  cover(image, width, height) {
    const { canvas } = this;
    const scale = Math.max(canvas.width / width, canvas.height / height);
    const [w, h] = [width * scale, height * scale];
    this.pen.imageSmoothingQuality = "high";
    this.pen.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
    this.use(true);
    update();
  },

  /** Show a camera's stream on the canvas, the next frame when the last is drawn; null ends it. */
  film(stream) {
    if (this.camera) this.camera.getTracks().forEach((track) => track.stop());
    this.camera = stream;
    element("camera").setAttribute("aria-pressed", stream !== null);
    if (stream === null) return;
    const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
    const next = () => {
      if (this.camera !== stream) return;
      if (!student.busy && video.videoWidth) this.cover(video, video.videoWidth, video.videoHeight);
      requestAnimationFrame(next);
    };
    video.play().then(next);
  },

  async toggleCamera() {
    if (this.camera) return this.film(null);
    try {
      this.film(await navigator.mediaDevices.getUserMedia({ video: true }));
    } catch {
      tell("The browser gives no camera to this page.");
    }
  },

  /** Put an image file on the canvas, cut to its shape. */
  async open(file) {
    try {
      const image = await createImageBitmap(file);
      this.film(null);
      this.cover(image, image.width, image.height);
    } catch {
      tell("This file is not an image that the browser can show.");
    }
  },

  listen() {
    let last = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      last = this.place(event);
      this.stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const next = this.place(event);
      this.stroke(last, next);
      last = next;
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { last = null; });
    element("clear").addEventListener("click", () => { this.film(null); this.clear(); update(); });
    element("camera").addEventListener("click", () => this.toggleCamera());
    element("file").addEventListener("change", (event) => this.open(event.target.files[0]));
    window.addEventListener("dragover", (event) => { event.preventDefault(); this.canvas.classList.add("over"); });
    window.addEventListener("dragleave", () => this.canvas.classList.remove("over"));
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      this.canvas.classList.remove("over");
      if (event.dataTransfer.files.length) this.open(event.dataTransfer.files[0]);
    });
  },
};

/** Buttons for the classes, or a number where there are too many. */
function classes(model) {
  const parent = element("classes");
  parent.hidden = false;
  const any = model.guidance ? [model.classes] : [];
  if (model.classes <= 20) {
    const values = [...Array(model.classes).keys(), ...any];
    choice(parent, values, 0, (value) => value === model.classes ? "any" : value, (value) => {
      wish.label = value;
      update();
    });
    return;
  }
  const input = Object.assign(document.createElement("input"), { type: "number", min: 0, max: model.classes - 1 });
  input.value = wish.label = 0;
  input.addEventListener("input", () => {
    if (input.value === "" || !input.checkValidity()) return;
    wish.label = Number(input.value);
    update();
  });
  parent.append(input);
}

function prompt() {
  element("prompt-row").hidden = false;
  wish.prompt = element("prompt").value;
  element("prompt").addEventListener("input", () => { wish.prompt = element("prompt").value; update(); });
}

function guidance(range) {
  element("guidance-row").hidden = !range;
  if (!range) return;
  const [min, max, value] = range;
  Object.assign(element("guidance"), { min, max, value });
  slider("guidance", () => wish.guidance.toFixed(2), (value) => { wish.guidance = value; });
}

/** The slider of the noise over a drawing: its logarithm moves evenly. */
function noise({ name, range: [low, high], value }) {
  element("noise").value = Math.log(value / low) / Math.log(high / low);
  slider("noise", () => wish[name].toFixed(name === "sigma" ? 1 : 2), (place) => {
    wish[name] = Number((low * (high / low) ** place).toFixed(3));
  });
}

async function start() {
  const model = await (await fetch("model")).json();
  element("model").textContent = model.name;
  if (model.classes) classes(model);
  if (model.prompt) prompt();
  choice(element("steps"), model.steps, model.default_steps, String, (value) => {
    wish.steps = value;
    update();
  });
  painting.begin(model.shape);
  slider("seed", () => wish.seed.toFixed(2), (value) => { wish.seed = value; });
  guidance(model.guidance);
  element("drawing").hidden = !model.noise;
  if (model.noise) {
    noise(model.noise);
    painting.listen();
  }
  element("teacher").hidden = !model.teacher;
  if (model.teacher) teacher = new Channel(element("teacher"), true);
  student = new Channel(element("student"), false);
  update();
}

start().catch(() => tell("The server does not answer. Does cm-lightning serve still run?"));
