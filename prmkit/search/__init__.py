"""Search: samples, steps and trees of one problem, and the runner that takes many problems through it.

Nothing here imports torch; engines and scorers are handed in. Methods by name are in `prmkit.search.methods`.
"""

from prmkit.search.beam import BeamParams, beam_search
from prmkit.search.best_of_n import BestOfNParams, CoTParams, best_of_n, chain_of_thought
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.compute_optimal import ComputeOptimalParams, MethodChoice, compute_optimal
from prmkit.search.dvts import dvts
from prmkit.search.mcts import MCTSParams, mcts
from prmkit.search.methods import METHODS, make_method, make_params
from prmkit.search.rebase import RebaseParams, rebase
from prmkit.search.result import SearchMethod, SearchResult, TreeNode
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.search.rstar import RStarParams, rstar
from prmkit.search.runner import RunParams, Searcher, run_search
from prmkit.search.sampling import sample_traces

__all__ = [
    "METHODS",
    "BeamParams",
    "BestOfNParams",
    "Budget",
    "BudgetLimits",
    "CoTParams",
    "ComputeOptimalParams",
    "MCTSParams",
    "MethodChoice",
    "RStarParams",
    "RebaseParams",
    "RunParams",
    "SearchMethod",
    "SearchResult",
    "SearchRow",
    "Searcher",
    "TraceRecord",
    "TreeNode",
    "beam_search",
    "best_of_n",
    "chain_of_thought",
    "compute_optimal",
    "dvts",
    "make_method",
    "make_params",
    "mcts",
    "read_rows",
    "rebase",
    "rstar",
    "run_search",
    "sample_traces",
]
