"""
The command line of Reg4Pru: a command is a file here, what commands stand on is in folders.

`reg4pru --help` lists the commands. Model and data can be imported without them, from `modeling_reg4pru` and
`datasets_fives`, which know nothing of this package.
"""
