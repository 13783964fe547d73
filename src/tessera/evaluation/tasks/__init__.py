"""What a model is asked to do: each kind of task, its data, its metrics, its protocol."""
