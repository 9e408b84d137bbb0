#include "train/study/figure.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <locale>
#include <sstream>

namespace braid {
namespace {

constexpr double kWidth = 720, kHeight = 400, kLeft = 64, kRight = 190, kTop = 36, kBottom = 52, kLegendLine = 18;
// Okabe and Ito's palette, "Color universal design", 2008.
constexpr std::array<const char*, 8> kColors = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933"};

/// One axis: data values to positions, and where its ticks are.
class Axis {
 public:
  Axis(bool log, double low_position, double high_position) : log_(log), from_(low_position), to_(high_position) {}

  void cover(double value) {
    if (!usable(value)) return;
    low_ = std::min(low_, scaled(value));
    high_ = std::max(high_, scaled(value));
  }
  bool usable(double value) const { return std::isfinite(value) && (!log_ || value > 0); }

  void finish() {
    if (low_ > high_) low_ = 0, high_ = 1;
    if (high_ - low_ < 1e-12) low_ -= 0.5, high_ += 0.5;
    if (log_) {
      low_ = std::floor(low_ + 1e-9);
      high_ = std::ceil(high_ - 1e-9);
      return;
    }
    step_ = round_step((high_ - low_) / 5);
    low_ = std::floor(low_ / step_ + 1e-9) * step_;
    high_ = std::ceil(high_ / step_ - 1e-9) * step_;
  }

  double position(double value) const { return from_ + (to_ - from_) * (scaled(value) - low_) / (high_ - low_); }

  std::vector<double> ticks() const {
    std::vector<double> values;
    const double step = log_ ? std::max(1.0, std::ceil((high_ - low_) / 7)) : step_;
    for (double at = low_; at <= high_ + step * 1e-6; at += step) values.push_back(log_ ? std::pow(10.0, at) : std::abs(at) < step * 1e-6 ? 0 : at);
    return values;
  }

 private:
  double scaled(double value) const { return log_ ? std::log10(value) : value; }
  static double round_step(double rough) {
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    for (double factor : {1.0, 2.0, 5.0})
      if (rough <= factor * power * (1 + 1e-9)) return factor * power;
    return 10 * power;
  }
  bool log_;
  double from_, to_;
  double low_ = std::numeric_limits<double>::infinity(), high_ = -std::numeric_limits<double>::infinity();
  double step_ = 1;
};

void draw_axes(std::ostream& svg, const Figure& figure, const Axis& x, const Axis& y) {
  const double right = kWidth - kRight, bottom = kHeight - kBottom;
  for (double tick : x.ticks()) {
    const double at = x.position(tick);
    svg << "<line x1='" << at << "' y1='" << kTop << "' x2='" << at << "' y2='" << bottom << "' stroke='#e4e4e4'/>"
        << "<text x='" << at << "' y='" << bottom + 18 << "' text-anchor='middle'>" << format_number(tick) << "</text>\n";
  }
  for (double tick : y.ticks()) {
    const double at = y.position(tick);
    svg << "<line x1='" << kLeft << "' y1='" << at << "' x2='" << right << "' y2='" << at << "' stroke='#e4e4e4'/>"
        << "<text x='" << kLeft - 8 << "' y='" << at + 4 << "' text-anchor='end'>" << format_number(tick) << "</text>\n";
  }
  svg << "<rect x='" << kLeft << "' y='" << kTop << "' width='" << right - kLeft << "' height='" << bottom - kTop << "' fill='none' stroke='#444'/>\n"
      << "<text x='" << (kLeft + right) / 2 << "' y='20' text-anchor='middle' font-weight='bold'>" << escape_markup(figure.title) << "</text>\n"
      << "<text x='" << (kLeft + right) / 2 << "' y='" << kHeight - 12 << "' text-anchor='middle'>" << escape_markup(figure.x_label) << "</text>\n"
      << "<text transform='translate(16 " << (kTop + bottom) / 2 << ") rotate(-90)' text-anchor='middle'>" << escape_markup(figure.y_label)
      << "</text>\n";
}

void draw_series(std::ostream& svg, const Series& series, const char* color, bool dashed, const Axis& x, const Axis& y) {
  std::ostringstream path;
  path.imbue(std::locale::classic());
  for (const auto& [px, py] : series.points)
    if (x.usable(px) && y.usable(py)) path << x.position(px) << ',' << y.position(py) << ' ';
  svg << "<polyline fill='none' stroke='" << color << "' stroke-width='2'" << (dashed ? " stroke-dasharray='6 4'" : "") << " points='" << path.str()
      << "'/>\n";
  if (!series.markers) return;
  for (const auto& [px, py] : series.points)
    if (x.usable(px) && y.usable(py)) svg << "<circle cx='" << x.position(px) << "' cy='" << y.position(py) << "' r='3.5' fill='" << color << "'/>\n";
}

}  // namespace

std::string escape_markup(const std::string& text) {
  std::string safe;
  for (char c : text) {
    if (c == '&') safe += "&amp;";
    else if (c == '<') safe += "&lt;";
    else if (c == '>') safe += "&gt;";
    else if (c == '"') safe += "&quot;";
    else if (c == '\'') safe += "&#39;";
    else safe += c;
  }
  return safe;
}

std::string format_number(double value) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text.precision(4);
  if (std::isfinite(value) && std::abs(value) >= 1e4 && std::abs(value) < 1e6 && value == std::floor(value)) text << static_cast<long long>(value);
  else text << value;
  return text.str();
}

std::string to_svg(const Figure& figure) {
  Axis x(figure.log_x, kLeft, kWidth - kRight), y(figure.log_y, kHeight - kBottom, kTop);
  for (const Series& series : figure.series) {
    for (const auto& [px, py] : series.points) {
      if (!x.usable(px) || !y.usable(py)) continue;
      x.cover(px);
      y.cover(py);
    }
  }
  x.finish();
  y.finish();
  std::ostringstream svg;
  svg.imbue(std::locale::classic());
  svg.precision(6);
  const double height = std::max(kHeight, kTop + kLegendLine * static_cast<double>(figure.series.size() + 1));
  svg << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << kWidth << ' ' << height << "' width='" << kWidth << "' height='" << height
      << "' font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n";
  draw_axes(svg, figure, x, y);
  for (size_t i = 0; i < figure.series.size(); ++i) {
    const char* color = kColors[i % kColors.size()];
    const bool dashed = i >= kColors.size();
    draw_series(svg, figure.series[i], color, dashed, x, y);
    const double at = kTop + 14 + kLegendLine * static_cast<double>(i), left = kWidth - kRight + 12;
    svg << "<line x1='" << left << "' y1='" << at << "' x2='" << left + 22 << "' y2='" << at << "' stroke='" << color << "' stroke-width='3'"
        << (dashed ? " stroke-dasharray='6 4'" : "") << "/><text x='" << left + 28 << "' y='" << at + 4 << "'>"
        << escape_markup(figure.series[i].label) << "</text>\n";
  }
  svg << "</svg>\n";
  return svg.str();
}

}  // namespace braid
