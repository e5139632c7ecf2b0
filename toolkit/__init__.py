"""Fine-tune detectors and segmenters on industrial defect images, and score them honestly."""
