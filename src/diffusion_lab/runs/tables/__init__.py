"""Tables and plots of the results of many runs: used by compare, evaluate and sweep."""
