local core = require "bough.core"
local fake = require "spec.support.fake_engine"
local progress = require "bough.progress"
local raises = require "spec.support.raises"

describe("bough.progress", function()
  describe("follow", function()
    local events
    local function watch(event) events[#events + 1] = event end
    before_each(function() events = {} end)

    it("returns the job's result, and leaves the job to its owner", function()
      local job = fake.job(function() return 5 end)
      assert.equal(5, progress.follow(job))
      assert.is_nil(job.closed)
    end)

    it("tells when numbers moved, and of the end", function()
      local job = fake.job(function() return true end, { { 1, 10 }, { 1, 10 }, { 7, 10 } })
      assert.is_true(progress.follow(job, watch, { op = "x", item = "y", unit = "files" }))
      assert.same({
        { op = "x", item = "y", unit = "files", done = 1, total = 10 },
        { op = "x", item = "y", unit = "files", done = 7, total = 10 },
        { op = "x", item = "y", unit = "files", done = 10, total = 10, finished = true },
      }, events)
      assert.is_false(rawequal(events[1], events[2]))
    end)

    it("ends with done equal to total where that was not known", function()
      progress.follow(fake.job(function() return {} end, { { 42, 0 } }), watch)
      assert.same({ 42, 42 }, { events[2].done, events[2].total })
    end)

    it("raises the job's failure, having told of it", function()
      local job = fake.job(function() error(core.error("io", "broken", {}), 0) end, { { 1, 2 } })
      raises("io", progress.follow, job, watch)
      assert.is_true(events[2].finished and events[2].failed)
      raises("io", progress.follow, fake.job(function() error(core.error("io", "broken", {}), 0) end))
    end)

    it("closes the job and raises when on_progress fails", function()
      local job = fake.job(function() return true end, { { 1, 2 } })
      local good, problem = pcall(progress.follow, job, function() error "mine" end)
      assert.is_false(good)
      assert.match("mine", problem)
      assert.is_true(job.closed)
    end)

    it("closes the job when its task is cancelled", function()
      local job = fake.job(function() end)
      job.wait = function() core.sleep(60) end
      local task = core.spawn(function() progress.follow(job, watch) end)
      core.sleep(0.01)
      task:cancel()
      raises("cancelled", task.wait, task)
      assert.is_true(job.closed)
    end)
  end)

  describe("bar", function()
    local out
    local to = { write = function(_, ...) out[#out + 1] = table.concat { ... } end, flush = function() end }
    before_each(function() out = {} end)

    it("draws one line, anew when it changes, and removes it", function()
      local bar = progress.bar("files", to)
      bar { op = "upload", unit = "bytes", done = 0, total = 2048 }
      bar { op = "upload", unit = "bytes", done = 1024, total = 2048 }
      bar { op = "upload", unit = "bytes", done = 1024, total = 2048 }
      bar { op = "upload", unit = "bytes", done = 2048, total = 2048, finished = true }
      assert.equal(3, #out)
      assert.match("^\r" .. ("files%s+%[##########          %]  50%% 2.0 KiB"):gsub("%%%%", "%%%%"), out[2])
      assert.equal("\r\27[K", out[3])
    end)

    it("counts where the end is not known, and clips what is long", function()
      local bar = progress.bar(nil, to)
      bar { op = "import", item = ("x"):rep(500) .. "\n", unit = "files", done = 7, total = 0 }
      assert.match("%.%.%. 7 files", out[1])
      assert.is_true(#out[1] < 90)
      bar { op = "import", unit = "bytes", done = 5, total = 3 }
      assert.match("100%%", out[2])
    end)

    it("writes nothing for work that told nothing before its end", function()
      progress.bar(nil, to) { op = "x", unit = "bytes", done = 1, total = 1, finished = true }
      assert.same({}, out)
    end)

    it("does nothing where stderr is no terminal", function()
      local real, told = core.is_terminal, {}
      finally(function() core.is_terminal = real end)
      core.is_terminal = function(fd)
        told[#told + 1] = fd
        return false
      end
      progress.bar "x" { op = "x", unit = "bytes", done = 1, total = 2 }
      assert.same({ 2 }, told)
    end)
  end)

  it("writes sizes for people", function()
    for bytes, text in pairs { [0] = "0 bytes", [1] = "1 byte", [1023] = "1023 bytes", [1024] = "1.0 KiB",
      [1 << 30] = "1.0 GiB", [5 << 50] = "5120.0 TiB" } do
      assert.equal(text, progress.size(bytes))
    end
  end)
end)
