"""Distillation: extra loss terms from a teacher. One file per method; nothing of it remains at inference."""
