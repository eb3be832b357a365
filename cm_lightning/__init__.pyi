# The public names: the one list for `from cm_lightning import NAME`, for type checkers, and for short names on the
# command line and in YAML. Each name has one line, sorted by module. The mark "lcm" means that the module needs that
# extra, which takes seconds to import: the command line imports it only when it is named.

from .backbones.adm import ADM as ADM
from .backbones.ddpmpp import DDPMpp as DDPMpp
from .backbones.dit import DiT as DiT
from .backbones.edm2 import EDM2 as EDM2
from .backbones.edm2 import UnitFourier as UnitFourier
from .backbones.embedding import AngleEmbedding as AngleEmbedding
from .backbones.embedding import FourierEmbedding as FourierEmbedding
from .backbones.embedding import GuidedTimesEmbedding as GuidedTimesEmbedding
from .backbones.embedding import JumpEmbedding as JumpEmbedding
from .backbones.embedding import PositionalEmbedding as PositionalEmbedding
from .backbones.embedding import SinusoidEmbedding as SinusoidEmbedding
from .backbones.embedding import StepSizeEmbedding as StepSizeEmbedding
from .backbones.embedding import TwoTimesEmbedding as TwoTimesEmbedding
from .backbones.mlp import ResidualMLP as ResidualMLP
from .backbones.ncsnpp import NCSNpp as NCSNpp
from .backbones.protocol import Backbone as Backbone
from .backbones.unet import UNet as UNet
from .backbones.unet2d import DiffusersUNet as DiffusersUNet
from .callbacks.bad_steps import SkipBadSteps as SkipBadSteps
from .callbacks.compiled import Compile as Compile
from .callbacks.ema import EMA as EMA
from .callbacks.export import Export as Export
from .callbacks.progress import RunProgress as RunProgress
from .callbacks.prompt_grid import PromptGrid as PromptGrid
from .callbacks.quality import Quality as Quality
from .callbacks.sample_grid import SampleGrid as SampleGrid
from .callbacks.save_last import SaveLast as SaveLast
from .callbacks.throughput import Throughput as Throughput
from .core.curriculum import ConstantLevels as ConstantLevels
from .core.curriculum import ContinuousCurriculum as ContinuousCurriculum
from .core.curriculum import DoublingLevels as DoublingLevels
from .core.curriculum import GridCurriculum as GridCurriculum
from .core.curriculum import ProgressiveLevels as ProgressiveLevels
from .core.curriculum import WarmUp as WarmUp
from .core.distance import L1 as L1
from .core.distance import L2 as L2
from .core.distance import ElementwiseHuber as ElementwiseHuber
from .core.distance import PseudoHuber as PseudoHuber
from .core.dyadic_times import DyadicTimes as DyadicTimes
from .core.dyadic_times import EvenSteps as EvenSteps
from .core.flow_matching import Diagonal as Diagonal
from .core.flow_matching import FlowMatching as FlowMatching
from .core.flow_matching import Split as Split
from .core.gap import ConstantGap as ConstantGap
from .core.gap import ExponentialGap as ExponentialGap
from .core.gap import SigmoidGap as SigmoidGap
from .core.gap import Through as Through
from .core.gap import UniformGap as UniformGap
from .core.guidance import GuidanceLaw as GuidanceLaw
from .core.halving import HalvingLevels as HalvingLevels
from .core.halving import TruncatedSNR as TruncatedSNR
from .core.halving import WholeSteps as WholeSteps
from .core.latent import LatentSchedule as LatentSchedule
from .core.latent import Timesteps as Timesteps
from .core.limit_times import OneTime as OneTime
from .core.limit_times import TwoTimes as TwoTimes
from .core.moment_matching import GroupTimes as GroupTimes
from .core.moment_matching import MomentMatching as MomentMatching
from .core.noise import LogitNormal as LogitNormal
from .core.noise import LogNormal as LogNormal
from .core.noise import LogNormalAndHigh as LogNormalAndHigh
from .core.noise import LogNormalIntervals as LogNormalIntervals
from .core.noise import UniformIntervals as UniformIntervals
from .core.noise import UniformTime as UniformTime
from .core.objective.chord import Chord as Chord
from .core.objective.self_distillation import Eulerian as Eulerian
from .core.objective.self_distillation import Lagrangian as Lagrangian
from .core.objective.tangent import Tangent as Tangent
from .core.ode_sampler import DDIM as DDIM
from .core.ode_sampler import Euler as Euler
from .core.ode_sampler import Heun as Heun
from .core.parameterization import EDM as EDM
from .core.parameterization import AverageVelocity as AverageVelocity
from .core.parameterization import BoundaryShifted as BoundaryShifted
from .core.parameterization import DenoiserJump as DenoiserJump
from .core.parameterization import Trigonometric as Trigonometric
from .core.path import DDPM as DDPM
from .core.path import VE as VE
from .core.path import Linear as Linear
from .core.path import TrigFlow as TrigFlow
from .core.residual import Adaptive as Adaptive
from .core.residual import Learned as Learned
from .core.residual import SquaredError as SquaredError
from .core.schedule import HoldThenCosine as HoldThenCosine
from .core.schedule import InverseSquareRoot as InverseSquareRoot
from .core.schedule import Ramp as Ramp
from .core.schedule import StagedDecay as StagedDecay
from .core.soft_consistency import JumpTimes as JumpTimes
from .core.soft_consistency import SoftConsistency as SoftConsistency
from .core.stages import Stage as Stage
from .core.target_rate import ConstantRate as ConstantRate
from .core.target_rate import ProgressiveRate as ProgressiveRate
from .core.trajectory import GivenGuidance as GivenGuidance
from .core.trajectory import GuidedNoise as GuidedNoise
from .core.trajectory import Itself as Itself
from .core.trajectory import SameNoise as SameNoise
from .core.trajectory import Teacher as Teacher
from .core.truncated import TruncatedCurriculum as TruncatedCurriculum
from .core.truncated import TruncatedStudent as TruncatedStudent
from .core.truncated import TruncatedWeighting as TruncatedWeighting
from .core.turns import Turns as Turns
from .core.velocity_chord import VelocityChord as VelocityChord
from .core.weighting import InverseGap as InverseGap
from .core.weighting import InverseVariance as InverseVariance
from .core.weighting import Uniform as Uniform
from .data.captioned_folder import CaptionedFolder as CaptionedFolder
from .data.captioned_shards import CaptionedShards as CaptionedShards
from .data.captions import CaptionedFashionMNIST as CaptionedFashionMNIST
from .data.captions import CaptionedMNIST as CaptionedMNIST
from .data.captions import CaptionedPairs as CaptionedPairs
from .data.cifar import CIFAR10 as CIFAR10
from .data.folder import ImageFolder as ImageFolder
from .data.imagenet import ImageNet64 as ImageNet64
from .data.mnist import MNIST as MNIST
from .data.mnist import FashionMNIST as FashionMNIST
from .data.toy import Toy as Toy
from .latent.adapted import AdaptedUNet as AdaptedUNet  # lcm
from .latent.base import PretrainedBase as PretrainedBase  # lcm
from .latent.base import TextToImageBase as TextToImageBase  # lcm
from .latent.small import SmallBase as SmallBase  # lcm
from .latent.student import LoRA as LoRA  # lcm
from .latent.student import WholeUNet as WholeUNet  # lcm
from .metrics.energy import EnergyDistance as EnergyDistance
from .metrics.extractor import CaptionedDigits as CaptionedDigits
from .metrics.extractor import FashionClassifier as FashionClassifier
from .metrics.extractor import Inception as Inception
from .metrics.extractor import MnistClassifier as MnistClassifier
from .metrics.extractor import SecondCaptionedDigits as SecondCaptionedDigits
from .metrics.extractor import SecondMnistClassifier as SecondMnistClassifier
from .metrics.feature_scores import FeatureScores as FeatureScores
from .metrics.features import DINOv2 as DINOv2
from .metrics.features import TorchvisionFeatures as TorchvisionFeatures
from .metrics.kernel import KernelDistance as KernelDistance
from .metrics.precision_recall import PrecisionRecall as PrecisionRecall
from .metrics.shares import PixelShares as PixelShares
from .modules.adversarial import AdversarialDistillation as AdversarialDistillation
from .modules.autoencoder import AutoencoderModule as AutoencoderModule  # lcm
from .modules.continuous import ContinuousConsistencyDistillation as ContinuousConsistencyDistillation
from .modules.continuous import ContinuousConsistencyTraining as ContinuousConsistencyTraining
from .modules.contrastive import ContrastiveModule as ContrastiveModule  # lcm
from .modules.coupling import OptimalTransport as OptimalTransport
from .modules.diffusion import DiffusionModule as DiffusionModule
from .modules.distillation import ConsistencyDistillation as ConsistencyDistillation
from .modules.distribution_matching import DistributionMatchingDistillation as DistributionMatchingDistillation
from .modules.guided import GuidedConsistencyTraining as GuidedConsistencyTraining
from .modules.guided_mean_flow import GuidedMeanFlow as GuidedMeanFlow
from .modules.improved_mean_flow import ImprovedMeanFlow as ImprovedMeanFlow
from .modules.latent_adversarial import LatentAdversarialDistillation as LatentAdversarialDistillation  # lcm
from .modules.latent_consistency import LatentConsistencyDistillation as LatentConsistencyDistillation  # lcm
from .modules.latent_diffusion import LatentDiffusionModule as LatentDiffusionModule  # lcm
from .modules.latent_matching import LatentDistributionMatching as LatentDistributionMatching  # lcm
from .modules.loading import load_module as load_module
from .modules.loading import load_trained as load_trained
from .modules.lpips import LPIPS as LPIPS
from .modules.mean_flow import MeanFlow as MeanFlow
from .modules.moment_matching import InductiveMomentMatching as InductiveMomentMatching
from .modules.progressive import ProgressiveDistillation as ProgressiveDistillation
from .modules.self_distillation import EulerianSelfDistillation as EulerianSelfDistillation
from .modules.self_distillation import LagrangianSelfDistillation as LagrangianSelfDistillation
from .modules.self_distillation import ProgressiveSelfDistillation as ProgressiveSelfDistillation
from .modules.shortcut import ShortcutModel as ShortcutModel
from .modules.training import ConsistencyTraining as ConsistencyTraining
from .modules.trajectory_distillation import TrajectoryDistillation as TrajectoryDistillation
from .modules.truncated import TruncatedConsistencyTraining as TruncatedConsistencyTraining
from .modules.velocity_chords import AlphaFlow as AlphaFlow
from .modules.velocity_chords import SoFlow as SoFlow
from .sharding import Sharded as Sharded

__version__: str
