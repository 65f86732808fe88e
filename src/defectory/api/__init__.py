"""The public Python API behind `import defectory`. Command line and benches that run projects use nothing else."""
