// What a kernel takes and gives, as a text that is compared with the arrays of every call before one of them is touched:
//
//     x[*, K] weight[M, K] bias?[M] -> y[*, M] | K < 1000
//
// An argument is name:type[axes]; without a type it is float32, ":i" int32, ":l" int64, ":w" (weights) float32 or
// bfloat16, ":q" (codes) int8 or uint8, ":s" (scales) float32, bfloat16 or float16, ":a" any, and "?" marks the one that may be left out. A letter stands for the
// length that is found where it first stands alone (or as 2*I: half of that), "*" in front for any number of axes, "..." for any
// shape. Behind "|" stand relations that must hold. By these names and letters the kernel itself asks for its arguments and lengths.

#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using i64 = int64_t;

// Arguments of a call: inputs, and behind them results where there are any yet.
struct Shapes {
  int count;
  const int *ranks;
  const i64 *const *shapes;
  const char *const *types;  // null: not looked at
};

class Signature {
 public:
  Signature(const char *kernel, const char *text, const Shapes &given) : kernel_(kernel), text_(text), given_(given) {
    std::fill(std::begin(lengths_), std::end(lengths_), -1);
  }

  // Whether inputs and results are what the text says; if not, `why` says what is wrong.
  bool agrees() { return inputs() && results(nullptr) && relations(); }

  // The rank and the lengths of each result, one after the other. False: as above.
  bool infer(std::vector<i64> &lengths) { return inputs() && relations() && results(&lengths); }

  std::string why;

  // Of what agrees: the place of an argument among all, -1: it was left out.
  int place(const char *name) const {
    for (const Named *named = named_; named < named_ + known_; ++named)
      if (!std::strncmp(named->name, name, named->size) && !name[named->size]) return named->place;
    throw std::logic_error(std::string("it has no argument ") + name);
  }

  i64 length(char letter) const {
    if (!known(letter)) throw std::logic_error(std::string("it has no length ") + letter);
    return lengths_[static_cast<int>(letter)];
  }

  i64 rows() const {  // what "*" stands for
    i64 total = 1;
    for (int axis = 0; axis < leading_; ++axis) total *= front_[axis];
    return total;
  }

 private:
  static constexpr int kMost = 16;  // arguments of a kernel

  struct Named {
    const char *name;
    int size, place;
  };

  bool named() {  // the name of an argument begins here
    name_ = at_;
    while (std::isalnum(*at_) || *at_ == '_') ++at_;
    name_size_ = at_ - name_;
    named_[known_] = {name_, name_size_, argument_};
    return ++known_ < kMost || fail("it has too many arguments: " + std::string(text_));
  }

  bool inputs() {
    const char *end = std::strstr(text_, "->");
    int said = 0;
    for (const char *p = text_; p < end; ++p) said += *p == '[';
    const int results = given_.types ? count_results(end) : 0;
    bool spare = said == given_.count - results;
    for (at_ = text_; skip(), at_ < end; ++argument_) {
      if (!named()) return false;
      type_ = 'f';
      if (*at_ == ':') type_ = at_[1], at_ += 2;
      if (*at_ == '?' && !spare) {
        named_[known_ - 1].place = -1;
        at_ = std::strchr(at_, ']') + 1, --argument_;
        continue;
      }
      at_ += *at_ == '?';
      if (argument_ >= given_.count) return fail("it needs more arguments: " + std::string(text_));
      if (!axes()) return false;
    }
    return argument_ + results == given_.count || fail("it takes other arguments: " + std::string(text_));
  }

  static int count_results(const char *p) {
    int count = 0;
    for (; *p && *p != '|'; ++p) count += *p == '[';
    return count;
  }

  bool results(std::vector<i64> *lengths) {
    at_ = std::strstr(text_, "->") + 2;
    for (; skip(), *at_ && *at_ != '|'; ++argument_) {
      if (!named()) return false;
      type_ = 'f';
      if (*at_ == ':') type_ = at_[1], at_ += 2;
      if (lengths ? !give(*lengths) : !axes()) return false;
    }
    return true;
  }

  bool relations() {
    const char *bar = std::strchr(text_, '|');
    for (at_ = bar ? bar + 1 : ""; skip(), *at_;) {
      const char *begin = at_;
      const i64 left = sum();
      skip();
      const char sign = *at_++;
      const i64 right = sum();
      if (sign == '=' ? left != right : left >= right)
        return fail("expected " + std::string(begin, at_) + " of " + std::string(text_, bar));
      at_ += *at_ == ',';
    }
    return true;
  }

  // The argument whose axes begin here.
  bool axes() {
    const char *begin = at_, *end = std::strchr(at_, ']');
    const int rank = given_.ranks[argument_];
    const i64 *shape = given_.shapes[argument_];
    if (given_.types && !suits(given_.types[argument_])) return disagrees(begin, end);
    int written = 1, axis = 0;
    for (const char *p = at_; p < end; ++p) written += *p == ',';
    ++at_;
    if (*at_ == '.') return at_ = end + 1, true;
    if (*at_ == '*') {
      const int leading = rank - written + 1;
      if (leading < 0) return disagrees(begin, end);
      if (leading_ < 0) leading_ = leading, front_ = shape;
      if (leading != leading_ || std::memcmp(shape, front_, leading * sizeof(i64))) return disagrees(begin, end);
      axis = leading, ++at_;
    } else if (rank != written) {
      return disagrees(begin, end);
    }
    for (; at_ < end; ++axis) {
      at_ += *at_ == ',';
      skip();
      if (at_ < end && !length(shape[axis])) return disagrees(begin, end);
    }
    at_ = end + 1;
    return true;
  }

  bool length(i64 found) {
    const bool part = std::isdigit(*at_) && at_[1] == '*' && std::isalpha(at_[2]);
    const char *letter = at_ + 2 * part;
    if (std::isalpha(*letter) && !known(*letter) && (letter[1] == ',' || letter[1] == ']')) {
      const i64 parts = part ? *at_ - '0' : 1;
      lengths_[static_cast<int>(*letter)] = found / parts;
      at_ = letter + 1;
      return found % parts == 0;
    }
    return sum() == found;
  }

  // The lengths of a result, of what is known by now.
  bool give(std::vector<i64> &lengths) {
    const char *begin = at_, *end = std::strchr(at_, ']');
    const size_t place = lengths.size();
    lengths.push_back(0);
    ++at_;
    if (*at_ == '*') lengths.insert(lengths.end(), front_, front_ + leading_), ++at_;
    while (at_ < end) {
      at_ += *at_ == ',';
      skip();
      if (at_ == end) break;
      lengths.push_back(sum());
      if (lengths.back() < 0) return fail("the result " + std::string(begin, end + 1) + " would be less than nothing");
    }
    lengths[place] = lengths.size() - place - 1;
    at_ = end + 1;
    return true;
  }

  i64 sum() {
    i64 value = product();
    for (;;) {
      if (skip(), *at_ == '+') ++at_, value += product();
      else if (*at_ == '-') ++at_, value -= product();
      else return value;
    }
  }

  i64 product() {
    i64 value = factor();
    for (;;) {
      if (skip(), *at_ == '*') {
        ++at_, value *= factor();
      } else if (*at_ == '/') {
        ++at_;
        const i64 by = factor();
        value = by > 0 ? (value - (value < 0 ? by - 1 : 0)) / by : -1;  // rounded down
      } else {
        return value;
      }
    }
  }

  i64 factor() {
    skip();
    if (*at_ == '(') {
      ++at_;
      const i64 value = sum();
      return ++at_, value;
    }
    if (std::isalpha(*at_)) return lengths_[static_cast<int>(*at_++)];
    i64 value = 0;
    while (std::isdigit(*at_)) value = 10 * value + *at_++ - '0';
    return value;
  }

  void skip() {
    while (*at_ == ' ') ++at_;
  }

  bool known(char letter) const { return lengths_[static_cast<int>(letter)] >= 0; }

  const char *type_names() const {
    switch (type_) {
      case 'i': return "int32";
      case 'l': return "int64";
      case 'w': return "float32 or bfloat16";
      case 's': return "float32, bfloat16 or float16";
      case 'q': return "int8 or uint8";
      case 'a': return "any";
      default: return "float32";
    }
  }

  bool suits(const char *type) const {
    const size_t size = std::strlen(type);
    for (const char *found = type_names(); (found = std::strstr(found, type)); ++found)  // a name may end as another does
      if ((found == type_names() || found[-1] == ' ') && !std::isalnum(found[size])) return true;
    return type_ == 'a';
  }

  bool disagrees(const char *begin, const char *end) {
    std::string where;
    for (const char *p = begin; p < end; ++p)
      if (std::isalpha(*p) && known(*p) && where.find(*p) == std::string::npos)
        where += (where.empty() ? ", where " : ", ") + std::string(1, *p) + " is " + std::to_string(lengths_[static_cast<int>(*p)]);
    return fail(std::string(name_, name_size_) + " is " + shown(argument_) + ", expected " + type_names() + " " +
                std::string(begin, end + 1) + where);
  }

  bool fail(const std::string &reason) {
    why = std::string(kernel_) + ": " + reason + "; got";
    for (int i = 0; i < given_.count; ++i) why += (i ? ", " : " ") + shown(i);
    return false;
  }

  std::string shown(int i) const {
    std::string text = given_.types ? std::string(given_.types[i]) + " [" : "[";
    for (int axis = 0; axis < given_.ranks[i]; ++axis) text += (axis ? ", " : "") + std::to_string(given_.shapes[i][axis]);
    return text + "]";
  }

  const char *kernel_, *text_;
  const Shapes &given_;
  const char *at_ = nullptr, *name_ = nullptr;
  int name_size_ = 0, argument_ = 0, leading_ = -1;
  char type_ = 'f';
  const i64 *front_ = nullptr;
  Named named_[kMost];
  int known_ = 0;
  i64 lengths_[128];  // by letter; -1: not known
};

}  // namespace
