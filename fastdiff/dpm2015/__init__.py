"""Sohl-Dickstein et al. 2015, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics".

from fastdiff import dpm2015

diffusion = dpm2015.BinomialDiffusion(steps=2000, rate=0.2)
best = dpm2015.bound(diffusion, dpm2015.HeartbeatOracle(diffusion), dpm2015.heartbeat_sequences())
best.k, best.gain      # K and K - L_null, bits a sequence
"""

from fastdiff.diffusion.binomial import BinomialDiffusion as BinomialDiffusion
from fastdiff.diffusion.diagonal import DiagonalGaussianDiffusion as DiagonalGaussianDiffusion
from fastdiff.diffusion.diagonal import GaussianOutput as GaussianOutput
from fastdiff.diffusion.kernels import DiffusionKernels as DiffusionKernels
from fastdiff.dpm2015.bound import Bound as Bound
from fastdiff.dpm2015.bound import bound as bound
from fastdiff.dpm2015.bound import entropy_bounds as entropy_bounds
from fastdiff.dpm2015.bound import step_kl as step_kl
from fastdiff.dpm2015.data import bark as bark
from fastdiff.dpm2015.data import dead_leaves as dead_leaves
from fastdiff.dpm2015.data import heartbeat as heartbeat
from fastdiff.dpm2015.data import heartbeat_sequences as heartbeat_sequences
from fastdiff.dpm2015.data import swiss_roll as swiss_roll
from fastdiff.dpm2015.likelihood import log_likelihood as log_likelihood
from fastdiff.dpm2015.multiscale import MultiScaleConfig as MultiScaleConfig
from fastdiff.dpm2015.multiscale import MultiScaleNet as MultiScaleNet
from fastdiff.dpm2015.networks import RBFNet as RBFNet
from fastdiff.dpm2015.networks import SequenceMLP as SequenceMLP
from fastdiff.dpm2015.oracle import HeartbeatOracle as HeartbeatOracle
from fastdiff.dpm2015.run import Run as Run
from fastdiff.dpm2015.sampling import sample as sample
from fastdiff.dpm2015.training import LearnedSchedule as LearnedSchedule
from fastdiff.dpm2015.training import Recipe as Recipe
from fastdiff.dpm2015.training import Training as Training
from fastdiff.dpm2015.training import train as train
from fastdiff.dpm2015.validation import quick_k as quick_k
