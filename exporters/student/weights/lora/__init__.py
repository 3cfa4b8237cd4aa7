"""LoRAs that are merged into a student's weights as they are read: files of every style, what fits where, the sum.

From the file to the weight: :mod:`source` (what was asked for), :mod:`file` (which file, and what lies beside it), :mod:`names`
(what a tensor is), :mod:`layers` (the tensors of one module), :mod:`scaling` (alpha and rank), :mod:`modules` and :mod:`original`
(which module of the student is meant), :mod:`merge` (the formula), :mod:`apply` (all of it, and what is said of it).
"""
