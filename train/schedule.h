// Learning-rate schedules: pure functions of the step.
#pragma once
#include <cstdint>
#include <string_view>

namespace braid {

enum class ScheduleKind : uint8_t { constant, cosine, wsd };

/// "constant", "cosine" or "wsd". Throws Error otherwise.
ScheduleKind parse_schedule(std::string_view text);
std::string_view to_string(ScheduleKind kind);

/// All three rise linearly over `warmup` steps to `peak`: step s has peak · (s + 1) / warmup. Then
///   constant: peak;
///   cosine:   half a cosine from peak down to floor_ratio · peak, which the last step has;
///   wsd:      peak, and over the last `decay_fraction` of all steps a straight line to floor_ratio · peak, which the last step has
/// (Hu et al., "MiniCPM: unveiling the potential of small language models", 2024, for warm-up, stable, decay).
struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double peak = 3e-4;
  int64_t steps = 1000;
  int64_t warmup = 0;
  double floor_ratio = 0.1;
  double decay_fraction = 0.2;
};

/// Throws Error that names the first argument out of range.
void check_schedule(const Schedule& schedule);

/// The rate of step `step` (0 … steps − 1; steps beyond the last have the last one's).
double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace braid
