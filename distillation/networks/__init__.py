"""The networks of a distillation: what they are told, what they are, what is stored of them."""
