local core = require "bough.core"
local errors = require "bough.error"
local raises = require "spec.support.raises"

describe("bough.error", function()
  describe("raise", function()
    it("raises a value with kind, message and op", function()
      local problem = raises("busy", errors.raise, "busy", "run", "%d runs already", 3)
      assert.equal("3 runs already", problem.message)
      assert.equal("run", problem.op)
      assert.equal("run: 3 runs already", tostring(problem))
    end)

    it("takes a percent sign in a message without arguments as it is", function()
      assert.equal("100% full", raises("resource", errors.raise, "resource", nil, "100% full").message)
    end)
  end)

  describe("new", function()
    it("carries the result and the cause", function()
      local result = { exit_code = 2 }
      local problem = errors.new("exit", "run", { result = result, cause = "why" }, "exit code 2")
      assert.equal(result, problem.result)
      assert.equal("why", problem.cause)
      assert.is_true(core.is_error(problem))
    end)
  end)

  describe("is", function()
    it("tells error values from others, and their kinds apart", function()
      local problem = errors.new("io", nil, nil, "x")
      assert.is_true(errors.is(problem))
      assert.is_true(errors.is(problem, "io"))
      assert.is_false(errors.is(problem, "busy"))
      assert.is_false(errors.is({ kind = "io" }, "io"))
      assert.is_false(errors.is("io"))
    end)
  end)

  describe("nearest", function()
    local known = { "timeout", "env", "cwd", "stdout", "stderr", "truncate_output_at" }

    it("finds a name with a letter missing, added, changed or swapped", function()
      assert.equal("timeout", errors.nearest("timout", known))
      assert.equal("timeout", errors.nearest("timeoutt", known))
      assert.equal("timeout", errors.nearest("timeoud", known))
      assert.equal("timeout", errors.nearest("tiemout", known))
    end)

    it("finds a longer or shorter form and other spellings", function()
      assert.equal("env", errors.nearest("environment", known))
      assert.equal("truncate_output_at", errors.nearest("truncate", known))
      assert.equal("stdout", errors.nearest("STDOUT", known))
      assert.equal("truncate_output_at", errors.nearest("truncate-output-at", known))
    end)

    it("finds nothing when nothing is near", function()
      assert.is_nil(errors.nearest("frobnicate", known))
      assert.is_nil(errors.nearest("x", known))
    end)
  end)

  describe("quote", function()
    it("keeps everything on one line and clips between characters", function()
      assert.equal('"a\\nb\\0\\"\\\\"', errors.quote('a\nb\0"\\'))
      local long = errors.quote(("é"):rep(200))
      assert.is_true(#long < 80)
      assert.is_truthy(utf8.len(long))
    end)

    it("names the type of what is no text", function()
      assert.equal("a table", errors.quote {})
      assert.equal("nil", errors.quote(nil))
      assert.equal("12", errors.quote(12))
    end)

    it("names objects by their class", function()
      local reader, writer = core.pipe()
      local _ <close> = reader
      local _ <close> = writer
      assert.equal("a reader", errors.quote(reader))
      assert.equal("a writer", errors.quote(writer))
      assert.equal("an error", errors.quote(core.error("io", "x", {})))
      assert.equal("bough.PIPE", errors.quote(core.PIPE))
      assert.equal("a Lua file", errors.quote(io.stdout))
      assert.equal("a table", errors.quote(setmetatable({}, { __name = "mine" })))
      assert.equal("a table", errors.quote(setmetatable({}, { __metatable = "hidden" })))
    end)
  end)

  describe("unknown", function()
    it("lists what is known when nothing is near", function()
      local problem = raises("invalid", errors.unknown, "run", "option", "frobnicate", { "a", "b" })
      assert.equal('unknown option "frobnicate": known are a, b', problem.message)
    end)
  end)
end)
