"""Scheduler: book and move meetings at the first time that suits people and rooms."""
