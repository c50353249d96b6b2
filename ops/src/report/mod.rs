//! What `bench` reports with: plots and memory figures.
