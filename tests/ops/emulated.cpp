// Calls functions of one library for a process of another architecture, which speaks through pipes: see emulated.py.
//
//     emulated LIBRARY        requests on standard input, answers on standard output
//
// Everything is int64 or bytes. A request is the name of a function, blocks of memory, the places in them that hold the
// address of another block, and the arguments (numbers or addresses of blocks); the answer is what the function returned
// and the blocks as they are then. Of a function that returns text the answer is the text.

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

using i64 = int64_t;
enum Wanted : i64 { kExists, kNumber, kText };

void read_all(void *to, size_t size) {
  for (char *at = static_cast<char *>(to); size > 0;) {
    const ssize_t done = read(0, at, size);
    if (done <= 0) std::exit(done == 0 ? 0 : 3);
    at += done, size -= done;
  }
}

void write_all(const void *from, size_t size) {
  for (const char *at = static_cast<const char *>(from); size > 0;) {
    const ssize_t done = write(1, at, size);
    if (done <= 0) std::exit(3);
    at += done, size -= done;
  }
}

i64 number() {
  i64 value;
  read_all(&value, sizeof value);
  return value;
}

struct Block {
  i64 size;
  std::unique_ptr<char[]> data;
};

// Registers of arguments that a function does not have are not looked at.
using Function = i64 (*)(i64, i64, i64, i64, i64, i64, i64, i64);

void serve(void *library) {
  std::string name(number(), ' ');
  read_all(&name[0], name.size());
  const i64 wanted = number();
  void *function = dlsym(library, name.c_str());
  std::vector<Block> blocks(number());
  for (Block &block : blocks) {
    block.size = number();
    block.data.reset(new char[block.size]);
    read_all(block.data.get(), block.size);
  }
  for (i64 links = number(); links > 0; --links) {
    const i64 block = number(), offset = number();
    const char *target = blocks[number()].data.get();
    std::memcpy(blocks[block].data.get() + offset, &target, sizeof target);
  }
  i64 argument[8] = {}, count = number();
  for (i64 i = 0; i < count; ++i) {
    const bool address = number();
    const i64 value = number();
    argument[i] = address ? reinterpret_cast<i64>(blocks[value].data.get()) : value;
  }
  i64 returned = function != nullptr;
  if (wanted != kExists)
    returned = reinterpret_cast<Function>(function)(argument[0], argument[1], argument[2], argument[3], argument[4],
                                                    argument[5], argument[6], argument[7]);
  if (wanted == kText) {
    const char *text = reinterpret_cast<const char *>(returned);
    const i64 size = text ? std::strlen(text) : -1;
    write_all(&size, sizeof size);
    return write_all(text, text ? size : 0);
  }
  write_all(&returned, sizeof returned);
  for (const Block &block : blocks) write_all(block.data.get(), block.size);
}

}  // namespace

int main(int, char **arguments) {
  void *library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return write_all(dlerror(), std::strlen(dlerror())), 2;
  for (;;) serve(library);
}
