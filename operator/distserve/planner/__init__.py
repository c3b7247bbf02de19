"""From a model, an SLO and a workload to a plan: parallelism, instances, units and goodput.

`simulator` is the simulation that plans rest on, `compat` is simdistserve's behaviour kept exact,
`search` looks for the best configuration and `plan` turns it into an answer. The package imports
NumPy and the standard library only, NumPy where it is used: a search starts in milliseconds.
"""
