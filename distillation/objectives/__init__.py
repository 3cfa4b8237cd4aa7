"""What a student learns from: pure functions beside :mod:`distillation.matching` and :mod:`distillation.fake`."""
