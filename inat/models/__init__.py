"""Backbones, where their weights come from, and the device they run on."""
