"""
The command line of Reg4Pru: each file is a command, and the folders contain what commands share.

`reg4pru --help` lists the commands. The model and the data sets are packages of their own, `modeling_reg4pru` and
`datasets_fives`, which do not import this one.
"""
