"""The modules that are traced: each computes what diffusers computes, in fewer operations or fewer bytes.

Every module's docstring derives why its rewrite is exact; ``tests/exporters/restructure`` checks each against diffusers.
"""
