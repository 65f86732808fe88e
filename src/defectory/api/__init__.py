"""The public Python API behind `import defectory`. Command line and benchmarks use nothing else."""
