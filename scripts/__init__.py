"""
The commands of reg4pru, one folder an errand: training, inference, hub, benchmark, study, upkeep.

`reg4pru --help` lists them. What they stand on can be imported from `modeling_reg4pru` (the model) and
`datasets_fives` (the benchmark), which know nothing of this package.
"""
