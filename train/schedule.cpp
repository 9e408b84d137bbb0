#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace braid {

ScheduleKind parse_schedule(std::string_view text) {
  for (ScheduleKind kind : {ScheduleKind::constant, ScheduleKind::cosine, ScheduleKind::wsd})
    if (text == to_string(kind)) return kind;
  fail("schedule: expected constant, cosine or wsd, got '", text, "'");
}

std::string_view to_string(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::constant:
      return "constant";
    case ScheduleKind::cosine:
      return "cosine";
    case ScheduleKind::wsd:
      return "wsd";
  }
  return "";
}

void check_schedule(const Schedule& schedule) {
  BRAID_CHECK(schedule.steps > 0, "schedule: steps must be positive, got ", schedule.steps);
  BRAID_CHECK(schedule.warmup >= 0 && schedule.warmup <= schedule.steps, "schedule: warmup must be between 0 and steps = ", schedule.steps, ", got ",
              schedule.warmup);
  BRAID_CHECK(schedule.peak > 0 && std::isfinite(schedule.peak), "schedule: the learning rate must be positive, got ", schedule.peak);
  BRAID_CHECK(schedule.floor_ratio >= 0 && schedule.floor_ratio <= 1, "schedule: floor_ratio must be between 0 and 1, got ", schedule.floor_ratio);
  BRAID_CHECK(schedule.decay_fraction >= 0 && schedule.decay_fraction <= 1, "schedule: decay_fraction must be between 0 and 1, got ",
              schedule.decay_fraction);
}

double learning_rate(const Schedule& schedule, int64_t step) {
  step = std::clamp<int64_t>(step, 0, schedule.steps - 1);
  if (step < schedule.warmup) return schedule.peak * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup);
  const double floor = schedule.peak * schedule.floor_ratio;
  const auto share = [&](int64_t length) {  // of the last `length` steps: 1 / length in the first, 1 in the last
    return static_cast<double>(step + 1 - (schedule.steps - length)) / static_cast<double>(length);
  };
  if (schedule.kind == ScheduleKind::cosine) {
    const double progress = share(schedule.steps - schedule.warmup);
    return floor + (schedule.peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  }
  if (schedule.kind == ScheduleKind::wsd) {
    const int64_t wanted = std::llround(schedule.decay_fraction * static_cast<double>(schedule.steps));
    const int64_t length = std::min(wanted, schedule.steps - schedule.warmup);
    if (step >= schedule.steps - length) return schedule.peak + (floor - schedule.peak) * share(length);
  }
  return schedule.peak;
}

}  // namespace braid
