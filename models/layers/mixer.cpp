#include "models/layers/mixer.h"

#include "models/layers/attention.h"
#include "models/layers/delta_net.h"
#include "models/layers/gated_deltanet.h"
#include "models/layers/gla.h"
#include "models/layers/hgrn.h"
#include "models/layers/hgrn2.h"
#include "models/layers/retnet.h"

namespace braid {

std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, int64_t layer_idx, const std::string& name, const Parameter& lower_bounds) {
  if (const AttentionConfig* attention = config.attention_of(layer_idx)) return std::make_unique<AttentionMixer>(config, *attention, name);
  switch (config.family) {
    case Family::hgrn:
      return std::make_unique<HgrnMixer>(config, layer_idx, name, lower_bounds);
    case Family::retnet:
      return std::make_unique<RetNetMixer>(config, name);
    case Family::gla:
      return std::make_unique<GlaMixer>(config, name);
    case Family::hgrn2:
      return std::make_unique<Hgrn2Mixer>(config, layer_idx, name, lower_bounds);
    case Family::delta_net:
      return std::make_unique<DeltaNetMixer>(config, name);
    case Family::gated_deltanet:
      return std::make_unique<GatedDeltaNetMixer>(config, name);
    case Family::transformer:
      break;
  }
  fail("model: layer ", layer_idx, " of a transformer must have full attention");
}

}  // namespace braid
