// The parts of CANN that cannot be an empty function: classes of GE that MindSpore keeps by value, handles that it stores
// before it uses them, the name and size of the card, and the safe functions of libc_sec. Built in the old ABI of strings,
// as CANN is; `stub.py` makes all other names.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#define ERANGE_S 34

namespace ge {

class AscendString {
 public:
  explicit AscendString(const char *text);
  const char *GetString() const;
  bool operator<(const AscendString &other) const;

 private:
  std::shared_ptr<std::string> text_;
};

AscendString::AscendString(const char *text) : text_(std::make_shared<std::string>(text ? text : "")) {}
const char *AscendString::GetString() const { return text_ ? text_->c_str() : ""; }
bool AscendString::operator<(const AscendString &other) const { return std::strcmp(GetString(), other.GetString()) < 0; }

// Has a virtual destructor in GE, so its first word is a table of functions; copies share the rest.
class Operator {
 public:
  Operator() = default;
  explicit Operator(const char *type);
  explicit Operator(const std::string &type);
  Operator(const char *name, const char *type);
  Operator(const std::string &name, const std::string &type);
  Operator(const AscendString &name, const AscendString &type);
  virtual ~Operator() = default;
  std::string GetName() const;
  std::string GetOpType() const;

 private:
  struct Label {
    std::string name, type;
  };
  std::shared_ptr<Label> label_;
};

Operator::Operator(const std::string &name, const std::string &type) : label_(std::make_shared<Label>(Label{name, type})) {}
Operator::Operator(const std::string &type) : Operator(type, type) {}
Operator::Operator(const char *name, const char *type) : Operator(std::string(name ? name : ""), std::string(type ? type : "")) {}
Operator::Operator(const char *type) : Operator(type, type) {}
Operator::Operator(const AscendString &name, const AscendString &type) : Operator(name.GetString(), type.GetString()) {}
std::string Operator::GetName() const { return label_ ? label_->name : ""; }
std::string Operator::GetOpType() const { return label_ ? label_->type : ""; }

class OperatorFactory {
 public:
  static Operator CreateOperator(const char *name, const char *type);
  static Operator CreateOperator(const std::string &name, const std::string &type);
};

Operator OperatorFactory::CreateOperator(const char *name, const char *type) { return Operator(name, type); }
Operator OperatorFactory::CreateOperator(const std::string &name, const std::string &type) { return Operator(name, type); }

// MindSpore 2.10's static initialisers write to this map.
class StatusFactory {
 public:
  static StatusFactory *Instance();
  std::map<uint32_t, std::string> descriptions_;
};

StatusFactory *StatusFactory::Instance() {
  static StatusFactory factory;
  return &factory;
}

}  // namespace ge

namespace {

const char kCard[] = "Ascend910B2";
const int64_t kCores = 24;
uint64_t object[1024];  // what every handle points to

template <typename T>
int give(T *to, T value) {
  *to = value;
  return 0;
}

}  // namespace

extern "C" {

const char *aclrtGetSocName() { return kCard; }
int rtGetSocVersion(char *to, uint32_t room) {
  std::strncpy(to, kCard, room);
  return 0;
}
int rtGetAiCoreCount(uint32_t *count) { return give(count, static_cast<uint32_t>(kCores)); }
int rtGetDeviceInfo(uint32_t, int32_t, int32_t, int64_t *value) { return give(value, kCores); }
int aclGetDeviceCapability(uint32_t, int, int64_t *value) { return give(value, kCores); }
int aclrtGetDeviceInfo(uint32_t, int, int64_t *value) { return give(value, kCores); }
int rtGetC2cCtrlAddr(uint64_t *address, uint32_t *length) {
  *length = sizeof object;
  return give(address, reinterpret_cast<uint64_t>(object));
}

int rtDevBinaryRegister(const void *, void **to) { return give<void *>(to, object); }
int rtRegisterAllKernel(const void *, void **to) { return give<void *>(to, object); }
int aclrtCreateContext(void **to, int) { return give<void *>(to, object); }
int aclrtCreateStream(void **to) { return give<void *>(to, object); }
int aclrtCreateStreamWithConfig(void **to, uint32_t, uint32_t) { return give<void *>(to, object); }
int aclrtCreateEvent(void **to) { return give<void *>(to, object); }
int aclrtCreateEventWithFlag(void **to, uint32_t) { return give<void *>(to, object); }
int aclrtCreateEventExWithFlag(void **to, uint32_t) { return give<void *>(to, object); }

int memcpy_s(void *to, size_t room, const void *from, size_t n) { return n > room ? ERANGE_S : (std::memcpy(to, from, n), 0); }
int memmove_s(void *to, size_t room, const void *from, size_t n) { return n > room ? ERANGE_S : (std::memmove(to, from, n), 0); }
int memset_s(void *to, size_t room, int value, size_t n) { return n > room ? ERANGE_S : (std::memset(to, value, n), 0); }
int strncpy_s(char *to, size_t room, const char *from, size_t n) {
  if (n >= room) return ERANGE_S;
  std::strncpy(to, from, n);
  to[n] = 0;
  return 0;
}
int strcpy_s(char *to, size_t room, const char *from) { return strncpy_s(to, room, from, std::strlen(from)); }
int vsnprintf_s(char *to, size_t room, size_t, const char *format, va_list values) { return std::vsnprintf(to, room, format, values); }
int snprintf_s(char *to, size_t room, size_t, const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int length = std::vsnprintf(to, room, format, values);
  va_end(values);
  return length;
}
int sprintf_s(char *to, size_t room, const char *format, ...) {
  va_list values;
  va_start(values, format);
  const int length = std::vsnprintf(to, room, format, values);
  va_end(values);
  return length;
}

}  // extern "C"
