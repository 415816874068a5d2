"""Search: samples, steps and trees of one problem, and the runner that takes many problems through it.

Nothing here imports torch; engines and scorers are handed in. Methods by name are in `prmkit.search.methods`; a search
function is imported from the module that has its name, e.g. `from prmkit.search.mcts import mcts`.
"""

from prmkit.search.beam import BeamParams
from prmkit.search.best_of_n import BestOfNParams, CoTParams
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.compute_optimal import ComputeOptimalParams, MethodChoice
from prmkit.search.dvts import DVTSParams
from prmkit.search.mcts import MCTSParams
from prmkit.search.methods import METHODS, Method, make_method, make_params, register_search_method
from prmkit.search.rebase import RebaseParams
from prmkit.search.result import SearchMethod, SearchResult, TreeNode
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.search.rstar import RStarParams
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
    "DVTSParams",
    "MCTSParams",
    "Method",
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
    "make_method",
    "make_params",
    "read_rows",
    "register_search_method",
    "run_search",
    "sample_traces",
]
