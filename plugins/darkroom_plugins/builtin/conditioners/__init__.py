"""What adds to the conditioning of rows: ControlNets, textual inversion, prompt weights."""
