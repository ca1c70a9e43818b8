"""dlgpu: a CNN engine."""
