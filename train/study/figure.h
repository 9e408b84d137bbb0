// Line charts as SVG text: no script, no font, no file of anybody else's.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace braid {

struct Series {
  std::string label;
  std::vector<std::pair<double, double>> points;  // x, y; points that are not finite are left out
  bool markers = true;                            // dots at the points
};

struct Figure {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_x = false, log_y = false;  // log10 axes; points that are not positive are left out
};

/// A picture of 720 × 400 with axes, round tick values, a legend at the right, colours that the colour-blind can tell apart.
std::string to_svg(const Figure& figure);
/// &, <, > and " made safe for HTML and SVG.
std::string escape_markup(const std::string& text);
/// At most four significant digits: "0.8419", "1.2e+05".
std::string format_number(double value);

}  // namespace braid
