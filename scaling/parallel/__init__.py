"""Meshes, kernels per platform, many hosts, and compiling for machines that are not here."""
