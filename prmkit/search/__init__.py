"""Search: samples, steps and trees of one problem, and the runner that takes many problems through it.

Nothing here imports torch; engines and scorers are handed in.
"""

from prmkit.search.best_of_n import BestOfNParams, best_of_n
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.rows import SearchRow, TraceRecord, read_rows
from prmkit.search.runner import RunParams, Searcher, run_search
from prmkit.search.sampling import sample_traces

__all__ = [
    "BestOfNParams",
    "Budget",
    "BudgetLimits",
    "RunParams",
    "SearchRow",
    "Searcher",
    "TraceRecord",
    "best_of_n",
    "read_rows",
    "run_search",
    "sample_traces",
]
