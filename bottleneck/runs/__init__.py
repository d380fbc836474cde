"""Read what was recorded as a typed, frozen run: a folder, a while of it, a scenario; ceilings; two sets compared."""
