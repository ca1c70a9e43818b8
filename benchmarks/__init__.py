"""Programs that measure dlgpu; results land under benchmarks/results/."""
