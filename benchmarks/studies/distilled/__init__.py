"""What the students of a distillation are worth beside their teacher, and what each part of the method adds."""
