"""Terms of the step's loss: each is a callable (views, context) -> (scalar, metrics)."""
