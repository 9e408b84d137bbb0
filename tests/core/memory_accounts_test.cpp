#include "core/memory_accounts.h"

#include <gtest/gtest.h>

#include "core/owner.h"

namespace braid::testing {
namespace {

const void* at(intptr_t address) { return reinterpret_cast<const void*>(address); }

TEST(MemoryAccounts, CountByOwnerNowAndAtThePeak) {
  MemoryAccounts accounts;
  accounts.add(at(1), 100, "linear");
  accounts.add(at(2), 300, "attention");
  accounts.add(at(3), 50, "linear");
  accounts.remove(at(2));
  accounts.remove(at(7));
  accounts.add(at(4), 10, "swiglu");
  EXPECT_EQ(accounts.used_bytes(), 160);
  EXPECT_EQ(accounts.peak_bytes(), 450);
  EXPECT_EQ(accounts.held_by("linear"), 150);
  EXPECT_EQ(accounts.summary(), "in use 160: linear 150, swiglu 10");
  ASSERT_EQ(accounts.held_at_peak().size(), 2u);
  EXPECT_EQ(accounts.held_at_peak()[0].owner, "attention");
  EXPECT_EQ(accounts.held_at_peak()[1].bytes, 150);
  accounts.reset_peak();
  EXPECT_EQ(accounts.peak_bytes(), 160);
  EXPECT_EQ(accounts.held_at_peak()[0].owner, "linear");
}

TEST(MemoryAccounts, NamesAreTextsWhereverTheyLie) {
  MemoryAccounts accounts;
  const std::string here = "linear", there = "linear";
  accounts.add(at(1), 1, here);
  accounts.add(at(2), 2, there);
  EXPECT_EQ(accounts.summary(), "in use 3: linear 3");
}

TEST(MemoryAccounts, TheLargestAreNamedAndTheRestIsTogether) {
  MemoryAccounts accounts;
  EXPECT_EQ(accounts.summary(), "in use 0");
  const char* names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
  for (int i = 0; i < 8; ++i) accounts.add(at(i + 1), i + 1, names[i]);
  EXPECT_EQ(accounts.summary(), "in use 36: h 8, g 7, f 6, e 5, d 4, c 3, others 3");
}

TEST(Owner, AnOperatorIsNamedUnlessAnOwnerIs) {
  const std::string_view before = current_owner();
  {
    const WithOperator outer("outer", false);
    const WithOperator inner("inner", true);
    EXPECT_EQ(current_owner(), "inner");
    const WithOwner owner(kOwnerGradients);
    EXPECT_EQ(current_owner(), kOwnerGradients);
  }
  EXPECT_EQ(current_owner(), before);
}

TEST(Owner, AdviceFitsWhatRuns) {
  EXPECT_EQ(advice_on_memory(false), "a shorter context or a smaller batch needs less");
  EXPECT_EQ(advice_on_memory(true), "fewer tokens per micro-batch or more recompute need less");
  const WithOperator recorded("linear", true);
  EXPECT_EQ(advice_on_memory(false), "fewer tokens per micro-batch or more recompute need less");
  const WithOwner owner(kOwnerParameters);
  EXPECT_EQ(advice_on_memory(true), "a smaller model needs less");
}

}  // namespace
}  // namespace braid::testing
