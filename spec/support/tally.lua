--- Reads TAP and counts it.
--
-- A test program says "ok 1 - name", "not ok 2 - name", "ok 3 - name # SKIP why"
-- and a plan "1..3". A plan that is missing or does not match is a failure too:
-- a program that died half-way must not look like one that passed.

local tally = {}
tally.__index = tally

--- A tally with nothing in it.
--- @param opts table? `must_run`: a skip is a failure unless `may_skip(name)` is true
function tally.new(opts)
  return setmetatable({ passed = 0, failed = 0, skipped = 0, failures = {}, opts = opts or {} }, tally)
end

--- Counts a failure that no TAP line told.
function tally:fail(name)
  self.failed = self.failed + 1
  self.failures[#self.failures + 1] = name
end

--- Counts one skip and says how it was taken.
function tally:skip(name)
  if self.opts.must_run and not (self.opts.may_skip and self.opts.may_skip(name)) then
    self:fail(name .. " (skipped, but every test must run here)")
    return "failed"
  end
  self.skipped = self.skipped + 1
  return "skipped"
end

--- Starts a program; `line` is called for each line of it, `finish` at its end.
function tally:program(name)
  local program = { seen = 0, plan = nil, failed_before = self.failed }

  --- Takes one line; returns "passed", "failed", "skipped" or nil when it is no result, and its name.
  function program.line(text)
    local plan = text:match "^1%.%.(%d+)"
    if plan then
      program.plan = math.tointeger(plan)
      return nil
    end
    local bad, rest = text:match "^(n?o?t? ?)ok%f[^%w_]%s*%d*%s*%-?%s*(.*)$"
    if not bad then
      return nil
    end
    program.seen = program.seen + 1
    local title, why = rest:match "^(.-)%s*#%s*[Ss][Kk][Ii][Pp]%w*%s*(.*)$"
    if bad ~= "" then
      self:fail(name .. ": " .. rest)
      return "failed", rest
    elseif title then
      return self:skip(name .. ": " .. title .. (why ~= "" and " # " .. why or "")), rest
    end
    self.passed = self.passed + 1
    return "passed", rest
  end

  --- Takes how it ended, as `file:close()` of io.popen tells it.
  function program.finish(ok, how, code)
    if program.plan ~= program.seen then
      local planned = program.plan and ("planned %d tests"):format(program.plan) or "printed no plan"
      self:fail(("%s: %s, ran %d (%s %s)"):format(name, planned, program.seen, how or "exit", code or 0))
    elseif not ok and self.failed == program.failed_before then
      self:fail(("%s: ended with %s %s"):format(name, how, code))
    end
  end

  return program
end

--- The last line of every test run.
function tally:__tostring()
  return ("%d passed, %d failed, %d skipped"):format(self.passed, self.failed, self.skipped)
end

return tally
