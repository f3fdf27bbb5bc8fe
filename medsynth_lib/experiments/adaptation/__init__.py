"""The adaptation study of lesson 04: Table 2, its controls and its rivals.

- `direction`: the data of one direction, such as SIMA to SIMB.
- `sources`: the models that were trained on the source.
- `target_style`, `target_physics`: what the target's inputs and its scanner's settings say about its appearance.
- `study`: all that a row may use, for one direction and one seed; `recipes`: how a model is adapted with it.
- `methods`: every row of the comparison, by name.
- `runner`: score a row; `cells`: the sweep over directions and seeds; `comparison`: what its table says.
- `rescan`: simulated subjects scanned again; `shift_causes`: what each cause of the shift costs; `tasks`: Fig. 1.
- `loss_preferences`: which volumes the latent loss prefers; `sensitivity`: wrong relaxation times and scanner settings.
- `own_volumes`: the method on a folder of your own, of scans that `own_scans` reads; `doubt`: whether its map is worth anything.
"""
