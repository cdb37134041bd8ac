"""Errors, settings, files, paths and streams that every package uses. Light: without torch, but for torchvision_ops."""
