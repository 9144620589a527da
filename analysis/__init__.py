"""From tables of runs to laws, intervals, predictions, figures and reports. Imports no training code."""
