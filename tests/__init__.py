"""The tests mirror the tree of ms_omni; `reference` holds recorded values and the scripts that recorded them."""
