// Models by name.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"

namespace braid {

/// The model `SIZE-FAMILY[-RATIO]`: SIZE tiny, 340M or 1.3B; FAMILY transformer, hgrn, retnet, gla, hgrn2, deltanet or gdn; RATIO
/// `R-1`: one layer of full attention in every R layers (3-1: layers 2, 5, 8, …; 8 of 24), or `pure`, which is the same as none. This is
/// how the published checkpoints are laid out, although the paper's text calls it linear : full. The 340M and 1.3B models have 24
/// layers and 32000 tokens of vocabulary; the tiny ones 6 layers, bytes as vocabulary, and a few hundred thousand parameters.
/// Any R from 1 to the number of layers is accepted. Throws Error, which says how names are made, for any other name.
ModelConfig preset(std::string_view name);

/// The family that presets call `name`: transformer, hgrn, retnet, gla, hgrn2, deltanet or gdn.
std::optional<Family> preset_family(std::string_view name);

/// Every preset that is usually wanted: each size and family, pure and with the ratios 24-1, 12-1, 6-1, 3-1 that its depth allows.
std::vector<std::string> preset_names();

}  // namespace braid
