"""The `distserve simulate` and `distserve plan` verbs: arguments in, text or JSON out.

Everything here turns words into the planner's dataclasses and results into words; nothing is
decided here. A user's mistake is a `PlannerError` or `WorkloadError`, one line and exit code 2.
"""

EXIT_OK = 0
EXIT_WRONG_INPUT = 2
EXIT_INFEASIBLE = 3
