"""A world from nothing: scenes and their captions, true pictures of them, an exact scorer, and networks that learn from them.

It holds :mod:`distillation.shape_world` and is harder: what lies where is free, things lie over one another, and they have
textures.
"""
