"""Predicting what a network would cost, corrected by what was measured."""
