--- What an engine cannot do is refused before anything happens, in one line that names it.

local bough = require "bough"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

return function(open, lacks)
  if next(lacks) == nil then return end

  describe("what it cannot do", function()
    local box, base

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    -- `lacks.asked`, if given, counts what the engine has been asked for so far: nothing may come of a refusal.
    local function refused(named, call, ...)
      local before = lacks.asked and lacks.asked()
      local problem = raises("unsupported", call, ...)
      assert.match(named, tostring(problem), 1, true)
      assert.is_nil(tostring(problem):find "\n")
      if before then assert.equal(before, lacks.asked()) end
    end

    if lacks.terminals then
      it("is a terminal", function()
        refused("pty", base.run, base, { "true", pty = true })
        refused("pty", base.popen, base, { "true", pty = true })
        local instance <close> = base:boot()
        refused("pty", instance.exec, instance, { "true", pty = { rows = 10, cols = 10 } })
        local session <close> = base:session()
        refused("pty", session.popen, session, { "true", pty = true })
        refused("pty", session.shell, session)
        assert.equal(base.uuid, session.uuid)
        assert.equal(0, session:run("true").exit_code)
      end)
    end

    if lacks.snapshots then
      it("is to commit what runs", function()
        local instance <close> = base:boot()
        refused("stop", instance.commit, instance)
        assert.equal("running", instance.state)
        assert.equal(0, instance:exec("echo x >/x"):wait())
        instance:stop()
        assert.equal("x\n", instance:commit():read "/x")
      end)
    end

    if lacks.removal then
      it("is to remove images", function()
        local image = base:run "true"
        refused("remove", image.remove, image)
        refused("gc", box.gc, box)
        assert.equal(image, box.images:get(image.uuid))
      end)
    end

    if lacks.imports then
      it("is to bring in what is on this machine", function()
        local dir = scratch.dir()
        scratch.sh(("cd %s && mkdir root && echo one >root/one && tar -C root -czf it.tar.gz ."):format(dir))
        for _, from in ipairs { dir, dir .. "/it.tar.gz", "busybox" } do
          refused("import", box.images.import, box.images, from)
        end
        raises("not_found", box.images.import, box.images, dir .. "/nothing")
      end)
    end

    if lacks.unbounded then
      it("is to pass on more output than it keeps: whoever reads is told, and not that this was all", function()
        local process <close> = base:popen { "dd", "if=/dev/zero", "bs=1M", "count=12", stderr = false }
        local size = 0
        local problem = raises("resource", function()
          while true do
            local chunk = process.stdout:read "c"
            if not chunk then break end
            size = size + #chunk
          end
        end)
        assert.equal(10 << 20, size)
        assert.match("10 MiB", problem.message, 1, true)
        local path = scratch.file "before"
        raises("resource", base.run, base, { "dd", "if=/dev/zero", "bs=1M", "count=12", stdout = path })
        assert.equal("before", scratch.sh("cat " .. scratch.quote(path)))
        assert.equal(10 << 20, #base:run({
          "dd", "if=/dev/zero", "bs=1M", "count=12", stderr = false, truncate_output_at = 20 << 20,
        }).stdout)
      end)
    end

    if lacks.network then
      it("is the network of the host", function() refused("network", base.run, base, { "true", network = "host" }) end)
    end

    if lacks.limits then
      it("is most limits", function()
        for name, value in pairs { memory = "64M", pids = 50, cpu = 1, files = 100 } do
          refused(name, base.run, base, { "true", limits = { [name] = value } })
          refused(name, base.boot, base, { limits = { [name] = value } })
        end
      end)
    end

    if lacks.cache then
      it("is to remember runs", function() refused("cache", base.run, base, { "true", cache = true }) end)
    end

    if lacks.exports then
      it("is to write images out, and to merge their layers", function()
        refused("export", base.export, base, scratch.dir() .. "/out.tar")
        refused("compact", box.compact, box)
      end)
    end

    if lacks.links then
      it("is to put links, times and empty directories in place", function()
        local dir = scratch.dir()
        scratch.sh(("mkdir %s/empty"):format(dir))
        for path, spec in pairs {
          ["/a-link"] = bough.symlink "/etc", ["/a-file"] = bough.bytes("x", { mtime = 1000 }), ["/a-dir/"] = dir,
        } do
          refused(path:match "^/[^/]*", base.run, base, { "true", files = { [path] = spec } })
          refused(path:match "^/[^/]*", base.apply_files, base, { [path] = spec })
        end
      end)
    end
  end)
end
