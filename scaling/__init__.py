"""Scaling experiments for language models: plan, train, fit, predict."""
