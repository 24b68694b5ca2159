"""The diffusion decision model, a walk with drift between two boundaries: simulation, likelihood, fits.

from fastdiff import decision

rt, choice = decision.simulate(v=1.0, a=2.0, t0=0.3, n=100_000, seed=1)
decision.log_likelihood(rt, choice, v=1.0, a=2.0, t0=0.3)
decision.fit(rt, choice).summary()
"""

from fastdiff.decision import lba as lba
from fastdiff.decision.conventions import from_hddm as from_hddm
from fastdiff.decision.conventions import from_pyddm as from_pyddm
from fastdiff.decision.conventions import from_rtdists as from_rtdists
from fastdiff.decision.conventions import from_ssms as from_ssms
from fastdiff.decision.density import cdf as cdf
from fastdiff.decision.density import log_pdf as log_pdf
from fastdiff.decision.density import log_pdf_and_slopes as log_pdf_and_slopes
from fastdiff.decision.density import pdf as pdf
from fastdiff.decision.density import survival as survival
from fastdiff.decision.design import Design as Design
from fastdiff.decision.fit import Fit as Fit
from fastdiff.decision.fit import fit as fit
from fastdiff.decision.hierarchical import HierarchicalFit as HierarchicalFit
from fastdiff.decision.hierarchical import fit_hierarchical as fit_hierarchical
from fastdiff.decision.intervals import Interval as Interval
from fastdiff.decision.intervals import bootstrap as bootstrap
from fastdiff.decision.intervals import profile as profile
from fastdiff.decision.intervals import simulated_trials as simulated_trials
from fastdiff.decision.likelihood import Outliers as Outliers
from fastdiff.decision.likelihood import log_likelihood as log_likelihood
from fastdiff.decision.log_posterior import default_priors as default_priors
from fastdiff.decision.moments import EZ as EZ
from fastdiff.decision.moments import Moments as Moments
from fastdiff.decision.moments import ez as ez
from fastdiff.decision.moments import moments as moments
from fastdiff.decision.moving import Closing as Closing
from fastdiff.decision.moving import MovingDensity as MovingDensity
from fastdiff.decision.moving import moving_density as moving_density
from fastdiff.decision.moving import moving_pdf as moving_pdf
from fastdiff.decision.parameters import RATCLIFF_S as RATCLIFF_S
from fastdiff.decision.parameters import Parameters as Parameters
from fastdiff.decision.parameters import parameters as parameters
from fastdiff.decision.posterior import Posterior as Posterior
from fastdiff.decision.posterior import sample_posterior as sample_posterior
from fastdiff.decision.simulate import Trials as Trials
from fastdiff.decision.simulate import TrialsWithPaths as TrialsWithPaths
from fastdiff.decision.simulate import simulate as simulate
from fastdiff.decision.subjects import SubjectFits as SubjectFits
from fastdiff.decision.subjects import fit_subjects as fit_subjects
