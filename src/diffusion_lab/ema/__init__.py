"""Exponential moving averages of network weights."""

from diffusion_lab.ema.averages import EMA, ConstantDecay, Decay, HalfLifeDecay, PowerFunctionDecay, RampedDecay

__all__ = ["EMA", "ConstantDecay", "Decay", "HalfLifeDecay", "PowerFunctionDecay", "RampedDecay"]
